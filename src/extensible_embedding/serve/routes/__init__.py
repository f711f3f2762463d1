"""Routes: each file has those of one part of the API, thin around the service."""
