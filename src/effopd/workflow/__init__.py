"""What the configuration amounts to: jobs, what each depends on, and what runs them."""
