"""The fetcher's rules: job and item states, source names, filters, references to pictures, retries."""
