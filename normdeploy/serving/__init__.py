"""From a bundle to a model that answers: what it is, a Triton repository of it, a server, and its test there."""
