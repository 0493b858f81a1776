"""The demonstration: a ResNet-20 trained on handwritten digits in a minute, and compressed."""
