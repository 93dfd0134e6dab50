"""Tests of what is installed: the manifests as kustomize renders them, the image's recipe, and the rights they give."""
