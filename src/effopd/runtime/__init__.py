"""How stages run, never what they compute: no module of this package is part of a fingerprint."""
