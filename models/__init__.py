"""Small networks with really trained weights, and each normalization module alone.

Used by the demo, the tests and the documentation: ``--app-dir . --model models.digits:resnet``.
"""
