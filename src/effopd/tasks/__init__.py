"""Verifiable tasks: problems, their reference answers, and a verifier that gives a reward with a reason."""
