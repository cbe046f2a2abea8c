"""Memory and compute of a config, estimated without a device."""
