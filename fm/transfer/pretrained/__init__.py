"""Published models, read into `fm`'s own and written back."""
