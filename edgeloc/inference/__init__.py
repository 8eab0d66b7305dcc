"""Networks: their manifests, what goes into them, and the backends that run them."""
