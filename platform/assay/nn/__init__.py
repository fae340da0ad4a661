"""Parts of models; imports torch and timm only."""
