"""What `python -m dex.animate` does: a source, drivers, a network → videos and a motion file.

footage → views (faces, squares) → drivers (poses and codes) → reenact → backends (networks) → mp4, paste
"""
