"""Reinforcement learning with verifiable rewards: GRPO, DAPO and PPO (docs/rl.md)."""
