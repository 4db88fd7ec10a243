"""A study: the same task done by differently fed arms, every step the same, all of it kept."""
