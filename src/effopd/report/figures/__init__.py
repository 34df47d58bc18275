"""The figures, from tables: a function each, by theme, in one style."""
