"""Checks of a student and a teacher before anything is trained with them: each finds one fault that gives no error."""
