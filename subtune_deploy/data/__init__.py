"""Labelled pictures: where they come from, samples of them, damage, augmentation."""
