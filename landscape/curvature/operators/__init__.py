"""What takes products with a Hessian: ways to a product, the choice between them, and the memory that they need."""
