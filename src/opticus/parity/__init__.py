"""How ports are compared with their references: the fill formula, recorded expectations and key manifests (DESIGN 7)."""
