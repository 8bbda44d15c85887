"""Code search: describe what you need in English, get the functions that do it."""
