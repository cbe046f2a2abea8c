"""The LightningModule and its optimizer."""
