"""How fast an engine serves requests: the roofline estimate, measured tables, and what joins them."""
