// Keys and signatures (docs/protocol.md §2): Ed25519 by Node's own crypto.
import {createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, sign, verify} from 'node:crypto';
import {readFileSync} from 'node:fs';

const PREFIX = 'ed25519:';

/** A private key, which signs, and the text of its public half. */
export class SigningKey {
  #private;

  /** @param {import('node:crypto').KeyObject} key */
  constructor(key) {
    if (key.asymmetricKeyType !== 'ed25519') throw new Error('the private key is not an Ed25519 key');
    this.#private = key;
    /** In the text form of §2. */
    this.publicKey = PREFIX + createPublicKey(key).export({format: 'jwk'}).x;
  }

  static generate() {
    return new SigningKey(generateKeyPairSync('ed25519').privateKey);
  }

  /**
   * Reads a PKCS #8 PEM file, as `omi keygen` writes them.
   * @param {string} path
   */
  static read(path) {
    const pem = readFileSync(path);
    try {
      return new SigningKey(createPrivateKey(pem));
    } catch {
      throw new Error(`${path} is not an Ed25519 private key in PKCS #8 PEM; \`omi keygen --out FILE\` makes one`);
    }
  }

  /**
   * Signs bytes.
   * @param {Uint8Array} bytes
   */
  sign(bytes) {
    return sign(null, bytes, this.#private).toString('base64url');
  }
}

/**
 * Reports whether a key made this signature of these bytes. Both texts are known to be of their
 * form.
 * @param {string} publicKey
 * @param {Uint8Array} bytes
 * @param {string} signature
 */
export function verifies(publicKey, bytes, signature) {
  const key = createPublicKey({key: {kty: 'OKP', crv: 'Ed25519', x: publicKey.slice(PREFIX.length)}, format: 'jwk'});
  return verify(null, bytes, key, Buffer.from(signature, 'base64url'));
}

/** @param {unknown} text @returns {text is string} */
export function isPublicKey(text) {
  return typeof text === 'string' && text.startsWith(PREFIX) && isBase64url(text.slice(PREFIX.length), 32);
}

/** @param {unknown} text @returns {text is string} */
export function isSignature(text) {
  return typeof text === 'string' && isBase64url(text, 64);
}

/**
 * Reports whether text is unpadded base64url of so many bytes. Node's decoder takes anything, so
 * what it decoded is encoded again: padding, white space, another alphabet or trailing bits don't
 * come back (§2, strict decoding).
 * @param {string} text
 * @param {number} length
 */
function isBase64url(text, length) {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.length === length && bytes.toString('base64url') === text;
}

/** 128 random bits (§1). */
export function newNonce() {
  return randomBytes(16).toString('base64url');
}
