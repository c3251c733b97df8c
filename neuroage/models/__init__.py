"""Networks: backbones, pooling and heads, and the tasks that give their outputs a meaning."""
