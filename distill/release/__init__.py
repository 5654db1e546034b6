"""A trained model as a folder that other people can load: safetensors, config, model card."""

from distill.release.release import load as load
