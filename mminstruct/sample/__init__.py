"""The bundled sample: twelve drawn scenes with captions and boxes in COCO's format, CC0-1.0."""
