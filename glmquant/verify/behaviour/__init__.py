"""What a checkpoint does when it runs: is it loaded, are drafts accepted, does it say the same?"""
