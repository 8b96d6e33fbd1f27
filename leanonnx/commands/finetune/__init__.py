"""Fine-tuning in torch; everything in here needs the extra ``finetune``."""
