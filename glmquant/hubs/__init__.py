"""Weights from ModelScope, Modelers and HF: listed, planned, fetched by range, proved."""
