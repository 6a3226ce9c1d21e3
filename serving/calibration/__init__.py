"""The search behind `mayfly calibrate`, for settings that suit a base model on one corpus."""
