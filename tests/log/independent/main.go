// A client of tile logs that shares no code with TrainWarden: Go's own sumdb/note and sumdb/tlog, and the paths and
// bundles of c2sp.org/tlog-tiles.
//
//	check FOLDER VKEY SIZE…   verify the log's head, every entry, and that it continues the trees of these sizes
//	make  FOLDER SKEY N    write a log of N entries ("record 0" …) under a signed head
//
// `check` prints the size, the root, the roots of the earlier sizes, and the SHA-256 of each entry, a line each.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

func main() {
	if len(os.Args) < 4 {
		fail(fmt.Errorf("usage: check FOLDER VKEY SIZE… | make FOLDER SKEY N"))
	}
	switch os.Args[1] {
	case "check":
		check(os.Args[2], os.Args[3], os.Args[4:])
	case "make":
		makeLog(os.Args[2], os.Args[3], number(os.Args[4]))
	}
}

func check(folder, vkey string, sizes []string) {
	verifier, err := note.NewVerifier(vkey)
	fail(err)
	signed, err := note.Open(read(folder, "checkpoint"), note.VerifierList(verifier))
	fail(err)
	tree := parse(signed.Text, verifier.Name())
	reader := tlog.TileHashReader(tree, tiles{folder})
	fmt.Println(tree.N, tree.Hash)
	for _, word := range sizes {
		old := number(word)
		root, err := tlog.TreeHash(old, reader)
		fail(err)
		proof, err := tlog.ProveTree(tree.N, old, reader)
		fail(err)
		fail(tlog.CheckTree(proof, tree.N, tree.Hash, old, root))
		fmt.Println(old, root)
	}
	for first := int64(0); first < tree.N; first += 1 << height {
		for i, entry := range bundle(folder, first/256, min(256, tree.N-first)) {
			index := first + int64(i)
			proof, err := tlog.ProveRecord(tree.N, index, reader)
			fail(err)
			fail(tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)))
			fmt.Printf("%x\n", sha256.Sum256(entry))
		}
	}
}

// parse reads a head of c2sp.org/tlog-checkpoint: origin, size and root, a line each.
func parse(text, origin string) tlog.Tree {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] != origin {
		fail(fmt.Errorf("the head is of %q, not of %q", lines[0], origin))
	}
	hash, err := tlog.ParseHash(lines[2])
	fail(err)
	return tlog.Tree{N: number(lines[1]), Hash: hash}
}

// tiles reads hash tiles by their paths of c2sp.org/tlog-tiles, which leave the height out.
type tiles struct{ folder string }

func (tiles) Height() int { return height }

func (t tiles) ReadTiles(wanted []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range wanted {
		data = append(data, read(t.folder, path(tile)))
	}
	return data, nil
}

func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func path(tile tlog.Tile) string {
	return strings.Replace(strings.Replace(tile.Path(), "tile/8/", "tile/", 1), "/data/", "/entries/", 1)
}

func bundle(folder string, n, width int64) (entries [][]byte) {
	data := read(folder, path(tlog.Tile{H: height, L: -1, N: n, W: int(width)}))
	for len(data) > 0 {
		size := int(binary.BigEndian.Uint16(data))
		entries, data = append(entries, data[2:2+size]), data[2+size:]
	}
	if int64(len(entries)) != width {
		fail(fmt.Errorf("bundle %d has %d entries, expected %d", n, len(entries), width))
	}
	return entries
}

func read(folder, name string) []byte {
	data, err := os.ReadFile(filepath.Join(folder, name))
	fail(err)
	return data
}

func makeLog(folder, skey string, size int64) {
	signer, err := note.NewSigner(skey)
	fail(err)
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (found []tlog.Hash, err error) {
		for _, i := range indexes {
			found = append(found, stored[i])
		}
		return found, nil
	})
	bundles := map[int64][]byte{}
	for n := int64(0); n < size; n++ {
		entry := []byte(fmt.Sprintf("record %d", n))
		hashes, err := tlog.StoredHashes(n, entry, reader)
		fail(err)
		stored = append(stored, hashes...)
		bundles[n/256] = append(binary.BigEndian.AppendUint16(bundles[n/256], uint16(len(entry))), entry...)
	}
	for _, tile := range tlog.NewTiles(height, 0, size) {
		data, err := tlog.ReadTileData(tile, reader)
		fail(err)
		write(folder, path(tile), data)
	}
	for n, data := range bundles {
		write(folder, path(tlog.Tile{H: height, L: -1, N: n, W: int(min(256, size-256*n))}), data)
	}
	root, err := tlog.TreeHash(size, reader)
	fail(err)
	text := fmt.Sprintf("%s\n%d\n%s\n", signer.Name(), size, root)
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	fail(err)
	write(folder, "checkpoint", signed)
}

func write(folder, name string, data []byte) {
	at := filepath.Join(folder, name)
	fail(os.MkdirAll(filepath.Dir(at), 0o755))
	fail(os.WriteFile(at, data, 0o644))
}

func number(word string) int64 {
	n, err := strconv.ParseInt(word, 10, 64)
	fail(err)
	return n
}

func min(a, b int64) int64 {
	if a < b {
		return a
	}
	return b
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
