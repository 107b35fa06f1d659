// Package archive keeps full copies of points outside the journal, in a Store.
//
// It promises that an archive that is listed is whole and durable; that no byte
// of it is used before its BLAKE3 hash was checked; that damage is told by
// archive, volume and chunk, and spoils no other chunk. It does not seal: who
// reads the store reads the disks.
//
// A store holds, by tenant, so that none can tell what another has:
//
//	<tenant>/chunks/<hh>/<hash>    4 MiB of a volume, named by its BLAKE3 hash;
//	                               a volume's last one may be shorter
//	<tenant>/archives/<id>.json    a manifest: point, lineage, volumes, chunks
//
// The way of an archive:
//
//  1. Create walks the view's volumes by chunk; what is zero is not stored;
//  2. each chunk is put under its hash, once (the same bytes of two archives are
//     one object);
//  3. the manifest is put last: without it there is no archive, and a Create that
//     broke off leaves chunks that the next one uses;
//  4. Verify reads everything, Restore one volume.
//
// Manifest, chunks and stores carry what later archives need: a version, three
// feature masks, a parent (none yet) and the tenant.
//
// Store is what a place must do; Directory is one on a file system, and package
// archivetest has its twin in memory and the suite that both pass. Everything is
// safe for concurrent use, with one writer of the same archive.
package archive
