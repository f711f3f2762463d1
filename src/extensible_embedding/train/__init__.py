"""Training: config -> data -> two-stream loss -> trainer. Imports the core, never the reverse."""
