"""The commands of `reconv`, one file each, and what they share."""
