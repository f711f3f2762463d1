"""Serving: one server in OpenAI's protocol, on engines that take rows beside tokens."""
