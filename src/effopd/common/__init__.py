"""What all packages use, and what uses none of them."""
