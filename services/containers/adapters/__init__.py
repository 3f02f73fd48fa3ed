"""The containers service's far ends: compose, the engine, the folder of code, templates on disk, forms."""
