"""What looks after results: status, verify, prune, compare, export."""
