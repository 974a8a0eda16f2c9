// Verifies tokens of a service by its JWK Set at the registry, as docs/jwks.md has it.
//
//   node verify.js URL_OF_JWKS_JSON [SECONDS]
//
// It reads one token a line, and answers each with one line: "ok KID", or "refused CODE: what jose
// says". SECONDS is the max-age of the sets, 29 unless the registry is set otherwise.
import {webcrypto} from 'node:crypto';
import {createInterface} from 'node:readline';

import {createRemoteJWKSet, decodeProtectedHeader, jwtVerify} from 'jose';

globalThis.crypto ??= webcrypto; // for Node 18

const [url, seconds = '29'] = process.argv.slice(2);
const maxAge = Number(seconds) * 1000;

// jose doesn't look at Cache-Control: it is told here how long it may keep a set, and how soon it
// may ask again for a key that it doesn't know.
const keys = createRemoteJWKSet(new URL(url), {cacheMaxAge: maxAge, cooldownDuration: maxAge});

for await (const token of createInterface({input: process.stdin})) {
  try {
    await jwtVerify(token, keys, {algorithms: ['EdDSA', 'Ed25519']});
    console.log(`ok ${decodeProtectedHeader(token).kid}`);
  } catch (error) {
    console.log(`refused ${error.code}: ${error.message}`);
  }
}
