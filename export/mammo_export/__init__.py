"""mammo-edge exporter: trained runs in, proven bundles out."""
