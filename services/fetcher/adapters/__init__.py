"""The fetcher's far ends: source collections, the web, decoder processes, the picture folder."""
