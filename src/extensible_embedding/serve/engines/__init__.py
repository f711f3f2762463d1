"""Engines: each file runs the reader on another library or server, behind one contract (`base`)."""
