"""Configs of other packages as configs of this one."""
