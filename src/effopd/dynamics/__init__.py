"""Parameter dynamics: what training did to the weights (paper section 3), from the weights alone."""
