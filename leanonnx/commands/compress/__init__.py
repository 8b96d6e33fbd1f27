"""The main job: load → observe → analyse → select → operate → measure → prove → recover → write."""
