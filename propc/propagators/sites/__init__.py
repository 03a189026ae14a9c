"""Propagators of sites: how a site draws, and which messages it sends."""
