"""Memory and work of a config, without a device."""
