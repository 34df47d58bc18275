"""Teachers: who scores rollouts, a model at hand or a server (docs/engines.md)."""
