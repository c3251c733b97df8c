"""Steps of preparation that a raw head needs, each a deterministic function usable alone."""
