"""Tests of the export to an OpenTelemetry collector, against a small real one."""
