"""Radii with their provenance, and the audit that attacks inside each of them."""
