"""What a training leaves: recipe, run folder, predictions, input contract. No torch in here."""
