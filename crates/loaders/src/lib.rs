//! From a diffusers folder or hub id to models on a device.
